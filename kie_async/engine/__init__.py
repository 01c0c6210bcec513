"""Where the wings meet: builds the parts and runs each journey. The only place that constructs a part."""
