"""What tests and campaigns stand on: clocks, misbehaving servers, tables, users."""
