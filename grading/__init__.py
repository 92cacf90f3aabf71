"""What instructors run: release assignments, collect and grade submissions in a sandbox, give feedback.

Nothing a student writes is trusted. A submission runs in a sandbox (`sandbox.py`) as a server of functions
(`server.py`); the checks stay outside (`checks.py`), call these functions with freshly drawn inputs and compare the
numbers that come back. What crosses the border is bytes with a schema (`wire.py`), never pickle.
"""
