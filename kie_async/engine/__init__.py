"""Where the wings meet: one module for each journey of a task. It alone builds the parts and knows them all."""
