"""One parser a format, each over the library that is kept well for it. They must not know limits of time and memory.

They run in the child process only. Each module imports its library at its top; only the one needed is loaded.
"""
