"""One module a contender: `setup(task) -> (run, info)`, started as a process of its own.

`run(n)` does n steps and returns when the last one is done. A contender whose packages are not
installed raises ImportError, and the table says so.
"""
