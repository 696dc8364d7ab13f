"""Faults of the courier, and of what it uses of gRPC's internals."""

from typing import Final

from harness.mutation.mutation import Edit, Mutation
from tests.mutants.nodes import COURIER, INTERNALS

MUTANTS: Final = (
    Mutation(
        "what the courier could not send is lost",
        (Edit("courier.py", "                self.offset = message.offset\n", ""),),
        COURIER + "test_what_cannot_be_sent_is_left_to_the_thread[refuse]",
    ),
    Mutation(
        "one stream's error ends the courier",
        (Edit("courier.py", "            except Exception:\n", "            except OSError:\n"),),
        COURIER + "test_what_cannot_be_sent_is_left_to_the_thread[fail]",
    ),
    Mutation(
        "a thread does not wait for the courier's message",
        (
            Edit(
                "courier.py",
                "        while not self._take_back():\n            self._wakeup.wait()\n",
                "        self._take_back()\n",
            ),
        ),
        COURIER + "test_thread_waits_for_the_message_that_is_on_its_way[cancel]",
    ),
    Mutation(
        "the courier ignores the flush interval",
        (Edit("courier.py", "if due_s > time.monotonic() and", "if due_s < 0 and"),),
        COURIER + "test_second_message_waits_for_the_interval_or_for_enough_output",
    ),
    Mutation(
        "each reader's message is encoded anew",
        (Edit("courier.py", "if last is None or", "if last is not self or"),),
        COURIER + "test_readers_at_one_offset_share_one_message",
    ),
    Mutation(
        "an idle courier keeps a log",
        (
            Edit(
                "courier.py",
                "                self._last = None  # a log",
                "                pass  # a log",
            ),
        ),
        COURIER + "test_idle_courier_keeps_no_log",
    ),
    Mutation(
        "gRPC's books know an operation only once",
        (
            Edit(
                "grpc_internals.py",
                "self[operation] = self.get(operation, 0) + 1",
                "self[operation] = 1",
            ),
        ),
        INTERNALS + "test_this_grpc_takes_several_calls_at_a_time_and_goes_on_to_after_each",
    ),
    Mutation(
        "the courier's messages are larger than the setting",
        (Edit("courier.py", "min(SMALL_BYTES, message_max_bytes)", "SMALL_BYTES"),),
        COURIER + "test_no_message_is_larger_than_the_setting_allows",
    ),
    Mutation(
        "an error at a message's end ends gRPC's thread",
        (
            Edit(
                "grpc_internals.py",
                "            except Exception:\n",
                "            except OSError:\n",
            ),
        ),
        INTERNALS + "test_an_error_at_a_messages_end_does_not_end_grpcs_thread",
    ),
)
