package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/dedupd/dedupd/access"
	"github.com/dedupd/dedupd/bucket"
	"github.com/dedupd/dedupd/chunkstore"
	"github.com/dedupd/dedupd/compression"
	"github.com/dedupd/dedupd/encodings"
	"github.com/dedupd/dedupd/gateway"
	"github.com/dedupd/dedupd/metrics"
	"github.com/dedupd/dedupd/narinfo"
	"github.com/dedupd/dedupd/site"
)

func serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve a binary cache",
		Long: "Serve a binary cache. Without any settings it is kept below $XDG_DATA_HOME/dedupd\n" +
			"(~/.local/share/dedupd), and a signing key is made there. Everyone may read; uploads are\n" +
			"taken from this machine, and from those with a token (see dedupd token).",
		Args: cobra.NoArgs,
	}
	settings := addFlags(cmd)
	takeOver := cmd.Flags().Bool("take-over", false, "write to the bucket although another server may do so; for when that one is gone and its lease is not over")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := settings()
		if err != nil {
			return err
		}
		log, flush := s.bufferedLogger(cmd.ErrOrStderr())
		defer flush()
		return serve(cmd.Context(), s, *takeOver, cmd.OutOrStdout(), log)
	}
	return cmd
}

// serve runs a server until ctx ends.
func serve(ctx context.Context, s *Settings, takeOver bool, stdout io.Writer, log *slog.Logger) (err error) {
	if os.Getenv("GOMEMLIMIT") == "" {
		// The limit is for what Go knows of. The rest is mapped files and stacks of threads.
		debug.SetMemoryLimit(int64(s.Memory) / 5 * 4)
	}
	files := s.KeyFiles
	if s.Follow && slices.Equal(files, defaultSettings().KeyFiles) {
		files = nil // the writer has signed what is served
	}
	keys, err := readKeys(files, true)
	if err != nil {
		return err
	}
	policy, err := s.policy(log)
	if err != nil {
		return err
	}
	tlsConfig, err := s.tlsConfig(log)
	if err != nil {
		return err
	}
	listeners, err := listen(ctx, s.Listen)
	if err != nil {
		return err
	}
	defer closeAll(listeners)
	counts := metrics.New(version())
	store, err := s.openStore(ctx, log, func(o *chunkstore.Options) {
		o.Bucket, o.OnLookup = counts.Bucket(o.Bucket), counts.Lookup
	})
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, s.closeStore(ctx, store))
		log.Info("stopped")
	}()
	price, err := s.priceTable()
	if err != nil {
		return err
	}
	counts.Requests(store, price)
	if !s.Follow {
		if err := store.AcquireLease(ctx, chunkstore.LeaseOptions{TTL: time.Duration(s.LeaseTTL), TakeOver: takeOver}); err != nil {
			return err
		}
	}
	puller, err := s.openPuller(ctx, store, keys, counts, log)
	if err != nil {
		return err
	}
	if puller != nil {
		defer puller.Close()
	}
	oldNames := s.openOldNames(log)
	if oldNames != nil {
		defer oldNames.Close()
	}
	pages := site.New(site.Config{
		Store: store, State: s.State, URL: s.PublicURL, Keys: publicTexts(keys, s.VerifyKeys), Private: !s.PublicRead, Memory: int64(s.Memory) / 32, Log: log,
	})
	ackTimeout := time.Duration(0)
	if s.Ack == "bucket" {
		ackTimeout = time.Duration(s.AckTimeout)
	}
	g := gateway.New(store, gateway.Config{
		Keys: keys, VerifyKeys: publicKeys(s.VerifyKeys), TrustedKeys: publicKeys(s.TrustedKeys), Access: policy, TLS: tlsConfig,
		Priority: s.Priority, NoMassQuery: !s.MassQuery, NarInfoMaxAge: time.Duration(s.NarInfoMaxAge),
		AckTimeout: ackTimeout, MaxFile: int64(s.MaxFile), ListingCache: int64(s.Memory) / 16,
		WriterURL: s.WriterURL, Pull: puller, OldNames: oldNames, Import: importHandler(store, keys, log), Report: s.reportHandler(store, log),
		MaxConnections: s.MaxConnections, IdleTimeout: time.Duration(s.IdleTimeout), ShutdownTimeout: time.Duration(s.ShutdownTimeout),
		AccessLog: s.AccessLog, Site: pages, Metrics: counts, MetricsRight: s.MetricsRight, Log: log,
	})
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return g.Serve(ctx, listeners...) })
	group.Go(func() error { return pages.Run(ctx) })
	if admin, err := listenAdmin(s.State); err != nil {
		log.Warn("stats and check will not work while the server runs", "err", err)
	} else {
		group.Go(func() error { return g.ServeAdmin(ctx, admin) })
	}
	if s.ScrubRate > 0 && !s.Follow { // the writer does, who can write down what it finds
		group.Go(func() error { return scrub(ctx, store, int64(s.ScrubRate), log) })
	}
	if s.SnapshotInterval > 0 && !s.Follow {
		group.Go(func() error {
			store.Snapshots(ctx, time.Duration(s.SnapshotInterval))
			return nil
		})
	}
	log.Info("serving", "listen", listeners[0].Addr().String(), "bucket", s.Bucket, "state", s.State, "version", version())
	s.advise(stdout, listeners, keys)
	daemon.SdNotify(false, daemon.SdNotifyReady)
	defer context.AfterFunc(ctx, func() { daemon.SdNotify(false, daemon.SdNotifyStopping) })()
	return group.Wait()
}

// openOldNames returns the cache for old names, nil if there is to be none and was none: one
// that was may have clients in the middle of its files. It leaves uploads the room that they
// need, and as much again. The caller closes it.
func (s *Settings) openOldNames(log *slog.Logger) *encodings.Cache {
	dir := filepath.Join(s.State, "old-names")
	if _, err := os.Stat(dir); s.OldNamesCache == 0 && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	c, err := encodings.Open(encodings.Options{
		Dir: dir, Size: int64(s.OldNamesCache), Log: log,
		Room: func() bool {
			free, err := chunkstore.FreeSpace(s.State)
			return err == nil && free > 2*int64(s.MinFree)
		},
	})
	if err != nil {
		log.Error("there will be no cache for old names", "err", err)
		return nil
	}
	return c
}

// scrub looks for damage until ctx ends. A store that cannot be scrubbed is served all
// the same.
func scrub(ctx context.Context, store *chunkstore.Store, rate int64, log *slog.Logger) error {
	if err := store.Scrub(ctx, rate); err != nil {
		log.Error("scrubbing stopped", "err", err)
	}
	return nil
}

// openStore opens the store that s names, and makes it if it is not there.
func (s *Settings) openStore(ctx context.Context, log *slog.Logger, change ...func(*chunkstore.Options)) (*chunkstore.Store, error) {
	opts, err := s.storeOptions(ctx, log)
	if err != nil {
		return nil, err
	}
	for _, c := range change {
		c(&opts)
	}
	return chunkstore.Open(ctx, opts)
}

// closeStore closes a store, also when ctx has ended: then it uploads what it can in time.
func (s *Settings) closeStore(ctx context.Context, store *chunkstore.Store) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Duration(s.ShutdownTimeout))
	defer cancel()
	return store.Close(ctx)
}

func (s *Settings) storeOptions(ctx context.Context, log *slog.Logger) (opts chunkstore.Options, err error) {
	if s.Bucket == defaultSettings().Bucket {
		if err := os.MkdirAll(dataDir(), 0o700); err != nil {
			return opts, err
		}
	}
	openBucket := bucket.Open
	if s.Follow {
		openBucket = bucket.OpenReader
	}
	b, err := openBucket(ctx, s.Bucket)
	if err != nil {
		return opts, err
	}
	if opts, err = s.engineOptions(ctx, log); err != nil {
		return opts, err
	}
	opts.State, opts.Bucket, opts.Follow, opts.FollowInterval = s.State, b, s.Follow, time.Duration(s.FollowInterval)
	if _, ok := b.(*bucket.Dir); !ok { // which is a disk already
		opts.CacheSize = int64(s.CacheSize)
	}
	return opts, nil
}

// engineOptions are those of a store wherever it is.
func (s *Settings) engineOptions(ctx context.Context, log *slog.Logger) (opts chunkstore.Options, err error) {
	opts = chunkstore.Options{
		PackSize: int64(s.PackSize), FlushInterval: time.Duration(s.FlushInterval), ParallelPuts: s.ParallelPuts, Log: log, Workers: workers,
		// Shares of the memory; the rest is for caches of the gateway and the index, for
		// the buffers of requests, and for garbage.
		PieceMemory: int64(s.Memory) * 3 / 32, DecoderMemory: int64(s.Memory) * 5 / 16, ReadMemory: int64(s.Memory) / 8, PlanCache: int64(s.Memory) / 16,
	}
	if opts.XZ, err = s.xzProgram(ctx); err != nil {
		return opts, err
	}
	if opts.MaxFragments = s.MaxFragments; opts.MaxFragments == 0 {
		opts.MaxFragments = -1
	}
	opts.Limits = chunkstore.Limits{
		MaxNAR: int64(s.MaxNAR), MaxUploads: s.MaxUploads, SpoolSize: int64(s.SpoolSize), MinFree: int64(s.MinFree),
	}
	if s.StoreDir != "" || s.Splitter != "" {
		opts.Repository = chunkstore.DefaultRepository(cmp.Or(s.StoreDir, chunkstore.DefaultStoreDir), cmp.Or(s.Splitter, chunkstore.Rabin))
	}
	return opts, nil
}

// xzProcesses bounds the processes that decode xz at a time. Beyond that, and where memory does
// not bound them before, xz is decoded in Go.
const xzProcesses = 16

// xzProgram returns what decodes xz, nil for Go.
func (s *Settings) xzProgram(ctx context.Context) (*compression.Program, error) {
	if s.XZ == "go" {
		return nil, nil
	}
	p, err := compression.FindProgram(ctx, xzProcesses)
	if s.XZ == "auto" {
		return p, nil
	}
	if err != nil {
		err = fmt.Errorf("xz is %q: %w", s.XZ, err)
	}
	return p, err
}

// policy returns who may do what.
func (s *Settings) policy(log *slog.Logger) (*access.Policy, error) {
	tokens, err := access.Open(s.tokenFile(), log)
	if err != nil {
		return nil, err
	}
	p := &access.Policy{Tokens: tokens, Log: log}
	if s.PublicRead {
		p.Anyone = access.Read
	}
	if s.LoopbackWrite {
		p.Local = access.Write
	}
	if s.ClientCA != "" {
		p.Certificate = s.ClientRights
	}
	return p, nil
}

// advise prints how to use the cache.
func (s *Settings) advise(w io.Writer, listeners []net.Listener, keys []narinfo.PrivateKey) {
	url := "http://<host>" // of the proxy before a Unix socket
	for _, l := range listeners {
		if l.Addr().Network() == "unix" {
			continue
		}
		if url = "http://" + clientAddr(l.Addr()); s.TLSCert != "" {
			url = "https://" + clientAddr(l.Addr())
		}
		break
	}
	fmt.Fprintf(w, "\nTo use this cache, add to nix.conf:\n\n  extra-substituters = %s\n", url)
	if len(keys) > 0 {
		fmt.Fprintf(w, "  extra-trusted-public-keys = %s\n", strings.Join(publicTexts(keys, s.VerifyKeys), " "))
	}
	if !s.PublicRead {
		fmt.Fprintf(w, "\nand to the netrc-file that it names what this prints:\n\n  dedupd token create --rights read --name <name>\n")
	}
	if s.Follow {
		return
	}
	if !s.LoopbackWrite || !s.PublicRead {
		fmt.Fprintf(w, "\nTo fill it, with a token that may read and write:\n\n  nix copy --to %s <store path>\n\n", url)
		return
	}
	fmt.Fprintf(w, "\nTo fill it, on this machine:\n\n  nix copy --to %s <store path>\n\n", url)
}

// clientAddr is an address at which clients reach a listener.
func clientAddr(addr net.Addr) string {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok || !tcp.IP.IsUnspecified() {
		return addr.String()
	}
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	return net.JoinHostPort(host, fmt.Sprint(tcp.Port))
}
