"""Metrics, and what the service manager is sent."""

from typing import Final

from harness.mutation.mutation import Edit, Mutation

METRICS: Final = "tests/integration/test_metrics.py::"
SYSTEMD: Final = "tests/integration/test_systemd.py::"

MUTANTS: Final[tuple[Mutation, ...]] = (
    Mutation(
        "metrics are served on any address",
        (Edit("rule.py", "return self.kind is Kind.ADDRESS or ", "return bool(host) or "),),
        "tests/impl/test_config.py::test_rejected_texts_of_flag_and_variable[metrics]",
    ),
    Mutation(
        "a client that stalls keeps the metrics for itself",
        (Edit("metrics.py", "partial(_cut, request)", "lambda: ANSWER_MAX_S"),),
        METRICS + "test_stalled_and_dripping_clients_are_cut_off_and_the_next_is_served",
    ),
    Mutation(
        "a client that stalls delays the server's end",
        (
            Edit(
                "metrics.py",
                "for each in (self.socket, self._connection):",
                "for each in (self.socket,):",
            ),
        ),
        METRICS + "test_stop_does_not_wait_for_a_client_that_stalls",
    ),
    Mutation(
        "each rpc that a client makes up is counted for itself",
        (
            Edit(
                "audit.py",
                'rpc_name(call.method) if call.method in PERMISSIONS else "other"',
                "rpc_name(call.method)",
            ),
        ),
        METRICS + "test_rpcs_that_a_client_makes_up_are_counted_as_one",
    ),
    Mutation(
        "readers of ended streams still count as open",
        (Edit("follow.py", "                self._open.remove(reader)\n", ""),),
        "tests/impl/test_follow.py::test_readers_counts_what_streams_were_given_and_how_far_the_open_ones_are_behind",
    ),
    Mutation(
        "a missing extra is a traceback",
        (Edit("server.py", "except ModuleNotFoundError as error:", "except KeyError as error:"),),
        METRICS + "test_missing_extra_is_named_at_the_start",
    ),
    Mutation(
        "the service manager never learns that the server is ready",
        (Edit("server.py", "        notify(READY)\n", ""),),
        SYSTEMD + "test_ready_is_sent_once_clients_are_served_and_stopping_at_the_end",
    ),
    Mutation(
        "an abstract socket of the service manager is taken for a path",
        (Edit("systemd.py", 'f"\\0{address[1:]}"', "address[1:]"),),
        SYSTEMD + "test_abstract_socket_is_one_of_its_name",
    ),
)
