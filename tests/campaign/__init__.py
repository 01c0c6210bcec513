"""The long runs: each has a command of its own and a short run in the suite."""
