"""Small invented copies of what the hub has, in its layouts: `+stand_in=tiny` and the tests run on them."""
