"""What no schedule can beat: `makespan` puts together what the other files argue."""
