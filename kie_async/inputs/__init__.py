"""What a task is given: requests and typed inputs. Pure: knows no network, no clock and no other wing."""
