"""Where the wings meet: one module for each journey of a task. It alone builds and knows all parts."""
