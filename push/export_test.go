package push

import "time"

func init() { firstWait = time.Millisecond }
