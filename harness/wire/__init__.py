"""Wire mutants: a relay between the judge and a server that changes one thing of the traffic.

The mutants are generated from the API's descriptors: a field that is added has its mutants at once.
They need no source, so they measure the checks with any server.
"""
