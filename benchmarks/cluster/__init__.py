"""Three nodes behind a balancer: what is lost, and for how long it is slow, when nodes fail, stop or change."""
