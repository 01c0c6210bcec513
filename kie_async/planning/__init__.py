"""When to poll a task: learned from earlier ones. Pure: knows no network, no clock and no other wing."""
