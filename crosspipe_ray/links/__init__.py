"""Links as they were measured: fitted, chosen between, corrected by runs. Pure Python and numpy."""
