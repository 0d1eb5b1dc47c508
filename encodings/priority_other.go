//go:build !unix

package encodings

func setLowPriority(int) {}
