"""What a PDE file is understood as (``show``), and whether it says what it should (``check``)."""
