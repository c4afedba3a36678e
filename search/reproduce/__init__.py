"""Published cases, run again by this project: as data, as runs, and as rows beside the published figures."""
