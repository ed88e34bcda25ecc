"""Trackers: curves where a team already looks at them; `metrics.jsonl` stays the truth that they mirror."""
