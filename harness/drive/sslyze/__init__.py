"""sslyze as an independent scanner, in its own environment: its pins conflict with the project's.

`requirements.lock` beside this file has the pins with hashes, and the build requirement of sslyze,
which is published as source only. To renew it, write the names sslyze and setuptools to a file, and
run `uv pip compile FILE --python-version 3.12 --universal --generate-hashes --no-annotate
--no-header --no-emit-index-url --no-emit-find-links -o harness/drive/sslyze/requirements.lock`.
"""
