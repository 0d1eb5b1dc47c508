{
  lib,
  stdenv,
  buildGoModule,
  installShellFiles,
  version ? "dirty",
}:

buildGoModule {
  pname = "dedupd";
  inherit version;
  src = lib.cleanSource ./..;

  # The hash of the modules in go.sum. Change one of them, put lib.fakeHash here, build, and copy the hash that Nix
  # says it got.
  vendorHash = lib.fakeHash;

  subPackages = [ "cmd/dedupd" ];
  env.CGO_ENABLED = 0;
  ldflags = [ "-s" "-w" "-X main.release=${version}" ];
  doCheck = false; # the tests want other Nix versions, nginx, a corpus: "make test"

  nativeBuildInputs = [ installShellFiles ];
  postInstall = ''
    install -Dm644 contrib/dedupd.toml -t $out/share/doc/dedupd
    install -Dm644 docs/*.md -t $out/share/doc/dedupd
    install -Dm644 contrib/systemd/dedupd.{service,socket} -t $out/lib/systemd/system
    substituteInPlace $out/lib/systemd/system/dedupd.service --replace-fail /usr/bin/dedupd $out/bin/dedupd
  ''
  + lib.optionalString (stdenv.buildPlatform.canExecute stdenv.hostPlatform) ''
    $out/bin/dedupd docs man
    installManPage man/*.[15]
    for shell in bash fish zsh; do
      $out/bin/dedupd completion $shell >dedupd.$shell
      installShellCompletion --cmd dedupd --$shell dedupd.$shell
    done
  '';

  meta = {
    description = "Nix binary cache that stores each byte once";
    license = lib.licenses.asl20;
    mainProgram = "dedupd";
    platforms = lib.platforms.unix;
  };
}
