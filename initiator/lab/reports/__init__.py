"""Reports on cases: tables, HTML pages, timelines and traces."""
