"""Laws: tables of constructors, and statements that hold for every entry."""
