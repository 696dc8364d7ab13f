"""sslyze as a second opinion, in an environment of its own: its pins clash with the project's.

`requirements.lock` beside this file has them, with hashes, and what builds sslyze itself, which
comes as source alone. To renew it: write the two names sslyze and setuptools to a file, and
`uv pip compile FILE --python-version 3.12 --universal --generate-hashes --no-annotate --no-header
--no-emit-index-url --no-emit-find-links -o harness/drive/sslyze/requirements.lock`.
"""
