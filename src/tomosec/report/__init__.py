"""The report: one offline HTML file for one record or many, for a reader who has neither the code nor a network.

It reads what a run left on disk and computes no result of its own, so it can be made anywhere, without torch.
"""
