"""One module per contender: `setup(task) -> (run, info)`, started in a process of its own.

`run(n)` does n steps and returns when the last one is done. A contender whose packages are not
installed raises ImportError, one that cannot run here `task.Absent`, and the table says so.
"""
