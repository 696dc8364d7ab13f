"""jobworker.v1: messages, client stub and servicer base, generated from jobworker.proto."""
