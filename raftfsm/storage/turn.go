package storage

// turn is a lock that may be held while the disk works. A mutex would do, but for simulation: virtual time passes only
// while goroutines wait for channels.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

func (t turn) take() { t <- struct{}{} }
func (t turn) give() { <-t }
