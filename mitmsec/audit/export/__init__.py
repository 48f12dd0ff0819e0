"""Events in other programs' formats. Pure: an event and where it is from in, one line out."""
