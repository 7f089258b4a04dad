"""What each `secateur` command does: settings in, work done, something said or written."""
