package main

import (
	"strings"
	"testing"

	"github.com/dedupd/dedupd/bucket/s3test"
)

func TestDoctor(t *testing.T) {
	dir := t.TempDir()
	out, err := dedupd(t, "", "doctor", "--bucket", "file://"+dir+"/bucket")
	if err == nil || !strings.Contains(out, "FAIL  directory") {
		t.Errorf("no directory: %v\n%s", err, out)
	}
	bucket := "--bucket=file://" + dir
	out, err = dedupd(t, "", "doctor", bucket)
	if err != nil || !strings.Contains(out, "no bucket yet") || !strings.Contains(out, "ok    create-only") {
		t.Errorf("an empty directory: %v\n%s", err, out)
	}
	url := s3test.Start(t, "versitygw").NewBucket(t, "bucket")
	out, err = dedupd(t, "", "doctor", "--bucket", url)
	if err != nil || !strings.Contains(out, "ok    repository           there is none yet") || !strings.Contains(out, "warn  tls") {
		t.Errorf("S3: %v\n%s", err, out)
	}
	if out, err = dedupd(t, "", "stats", "--bucket", url, "--state", t.TempDir()); err == nil {
		t.Errorf("stats made a store: %s", out)
	}
	out, err = dedupd(t, "", "doctor", "--json", "--bucket", "s3://bucket?odd=1")
	if err == nil || !strings.Contains(out, `{"check":"url","status":"FAIL",`) {
		t.Errorf("a bad URL: %v\n%s", err, out)
	}
}
