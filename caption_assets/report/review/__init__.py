"""The review of captions: a local web page on which people accept, reject and rewrite them, one key a decision."""
