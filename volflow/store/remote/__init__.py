"""Volumes behind URLs: access through obstore, boxes of shards in few requests."""
