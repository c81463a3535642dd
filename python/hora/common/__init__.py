"""What the interfaces for frameworks share: starting and ending, errors, process sets."""
