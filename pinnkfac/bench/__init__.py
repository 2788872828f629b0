"""Benchmarks: suites of cases, run job by job in equal times, beside published results.

suites.py     cases, their nets, times and goals    published.csv  figures of papers
running.py    jobs and their folders                published.py   reads them
job.py        the process of one job                results.py     jobs → rows → JSON, CSV
tables.py     terminal and Markdown                 pictures.py    errors over seconds and steps
"""
