"""What a run would meet, told before anything trains: what is missing here, schedules that cannot learn, tokens that differ."""
