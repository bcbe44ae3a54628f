"""What is wrong with a machine, its interfaces and a wire, and how to mend it.

What the two ``doctor`` commands have in common. Looking (``examine_...``) and judging
(``judge_...``) are apart, so that what this machine has not got can be judged too.
"""
