"""Do two network commands mean the same? They are parsed and compared, never run; see `compare`."""
