"""The protocol: generated code beside its .proto (`make proto` makes it anew)."""
