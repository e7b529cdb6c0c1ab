"""What every layer may use: errors, typed settings, atomic files, progress, facts about the process."""
