"""Reports: pure functions of what the catalog knows and the policies want; nothing is read here, no clock is asked."""
