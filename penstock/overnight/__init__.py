"""Jobs that a provider answers as a file, within a day and for less. It must not know a loop, or a person's command.

A parcel is filled from one batch, sent to one deployment, looked at until the provider is done, and taken apart. Each
step commits before the next begins, may run twice, and may stop anywhere. A file answers or hands over: what it leaves
without an answer takes the way of live calls, and only that judges what cannot be answered.
"""
