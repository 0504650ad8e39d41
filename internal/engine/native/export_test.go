package native

// Order is the order of a commit.
var Order = order
