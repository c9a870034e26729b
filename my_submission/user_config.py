"""The evaluator looks here for the ranker to run."""

from my_submission.mcs_baseline_ranker import MCS_BaseLine_Ranker

My_Ranker = MCS_BaseLine_Ranker
