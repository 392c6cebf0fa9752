"""What people read: tables and figures, from records alone."""
