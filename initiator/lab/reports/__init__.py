"""What came of cases: tables, HTML pages, timelines and traces."""
