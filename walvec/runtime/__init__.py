"""How a process lives: settings, logging, lifecycle, clock, embedded Postgres. Law: knows no role and no record."""
