# services.dedupd: a Nix binary cache.
#
#   services.dedupd = {
#     enable = true;
#     openFirewall = true;
#     settings.listen = [ ":8080" ];
#     settings.priority = 20;
#
#     # what is not here yet comes from cache.nixos.org, and stays
#     settings.upstream = [
#       {
#         url = "https://cache.nixos.org";
#         public-keys = [ "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=" ];
#       }
#       # and what this machine has in its own store
#       { store = "/nix/store"; }
#     ];
#   };
{
  config,
  lib,
  pkgs,
  ...
}:

let
  cfg = config.services.dedupd;
  toml = pkgs.formats.toml { };
  file = toml.generate "dedupd.toml" cfg.settings;
  # The port of "host:port", null for a socket's path and for systemd's.
  portOf =
    address:
    let
      match = builtins.match ".*:([0-9]+)" address;
    in
    if match == null || lib.hasPrefix "unix:" address then null else lib.toInt (lib.head match);
in
{
  options.services.dedupd = {
    enable = lib.mkEnableOption "dedupd, a Nix binary cache that stores each byte once";

    package = lib.mkPackageOption pkgs "dedupd" { };

    settings = lib.mkOption {
      description = ''
        Settings, as in {manpage}`dedupd.toml(5)`. A name that is no setting keeps the server from starting.
        They are in the Nix store for all to read: no secret belongs here, only the name of a file that has it.
      '';
      default = { };
      example = lib.literalExpression ''
        {
          bucket = "file:///srv/cache";
          memory = "2GiB";
          upstream = [
            {
              url = "https://cache.nixos.org";
              public-keys = [ "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=" ];
            }
            { store = "/nix/store"; }
          ];
        }
      '';
      type = lib.types.submodule {
        freeformType = toml.type;
        options = {
          bucket = lib.mkOption {
            type = lib.types.str;
            default = "file:///var/lib/dedupd/bucket";
            description = "URL of the bucket. A directory elsewhere must be the user dedupd's.";
          };
          state = lib.mkOption {
            type = lib.types.path;
            default = "/var/lib/dedupd/state";
            description = "Directory for the index and the spool, on a local disk.";
          };
          listen = lib.mkOption {
            type = lib.types.listOf lib.types.str;
            default = if cfg.socketActivation then [ "systemd" ] else [ "127.0.0.1:8080" ];
            defaultText = lib.literalExpression ''[ "127.0.0.1:8080" ]'';
            description = "Addresses to serve on.";
          };
          key-files = lib.mkOption {
            type = lib.types.listOf lib.types.str;
            default =
              if cfg.credentials ? key then
                [ "/run/credentials/dedupd.service/key" ]
              else
                [ "/var/lib/dedupd/key" ];
            defaultText = lib.literalExpression ''[ "/var/lib/dedupd/key" ]'';
            description = "Files with secret keys that sign uploads. The default is made at the first start.";
          };
        };
      };
    };

    credentials = lib.mkOption {
      type = lib.types.attrsOf lib.types.path;
      default = { };
      example = lib.literalExpression ''{ key = "/run/secrets/dedupd-key"; }'';
      description = ''
        Files with secrets, which the service finds in {file}`/run/credentials/dedupd.service`
        ({option}`LoadCredential` of {manpage}`systemd.exec(5)`). One that is called `key` signs uploads.
      '';
    };

    environmentFile = lib.mkOption {
      type = lib.types.nullOr lib.types.path;
      default = null;
      description = "File with variables of {manpage}`dedupd.toml(5)`, which go before the settings.";
    };

    socketActivation = lib.mkOption {
      type = lib.types.bool;
      default = false;
      description = "Have systemd open the port, and keep connections waiting while the server restarts.";
    };

    listenStreams = lib.mkOption {
      type = lib.types.listOf lib.types.str;
      default = [ "8080" ];
      description = "What systemd listens on with {option}`socketActivation`.";
    };

    openFirewall = lib.mkOption {
      type = lib.types.bool;
      default = false;
      description = "Open the TCP ports of {option}`settings.listen` and {option}`listenStreams`.";
    };
  };

  config = lib.mkIf cfg.enable {
    environment.systemPackages = [ cfg.package ];

    users.users.dedupd = {
      isSystemUser = true;
      group = "dedupd";
      home = "/var/lib/dedupd";
    };
    users.groups.dedupd = { };

    networking.firewall.allowedTCPPorts = lib.mkIf cfg.openFirewall (
      lib.filter (port: port != null) (
        map portOf (cfg.settings.listen ++ lib.optionals cfg.socketActivation (map (s: ":${s}") cfg.listenStreams))
      )
    );

    systemd.sockets.dedupd = lib.mkIf cfg.socketActivation {
      description = "Port of the Nix binary cache";
      wantedBy = [ "sockets.target" ];
      inherit (cfg) listenStreams;
      socketConfig.NoDelay = true;
    };

    systemd.services.dedupd = {
      description = "Nix binary cache that stores each byte once";
      documentation = [ "man:dedupd-serve(1)" "man:dedupd.toml(5)" ];
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ];
      path = [ pkgs.xz ]; # decodes faster than Go does
      environment = {
        DEDUPD_CONFIG = "${file}";
        XDG_DATA_HOME = "/var/lib"; # where a key is made if there is none
      };

      # What contrib/systemd/dedupd.service says, with the reasons; a test compares them.
      serviceConfig = {
        Type = "notify";
        ExecStart = "${lib.getExe cfg.package} serve";
        EnvironmentFile = lib.mkIf (cfg.environmentFile != null) cfg.environmentFile;
        LoadCredential = lib.mapAttrsToList (name: path: "${name}:${path}") cfg.credentials;
        User = "dedupd";
        Group = "dedupd";
        StateDirectory = "dedupd";
        StateDirectoryMode = "0700";
        RuntimeDirectory = "dedupd";
        UMask = "0077";
        TimeoutStartSec = "infinity";
        TimeoutStopSec = "90s";
        KillMode = "mixed";
        Restart = "on-failure";
        RestartSec = "2s";
        LimitNOFILE = 65536;
        # With PrivateUsers a bucket elsewhere must be this user's, too.
        ReadWritePaths =
          let
            dirs = [ cfg.settings.state ] ++ lib.optional (lib.hasPrefix "file://" cfg.settings.bucket) (lib.removePrefix "file://" cfg.settings.bucket);
          in
          lib.filter (dir: !(lib.hasPrefix "/var/lib/dedupd/" dir)) dirs;
        CapabilityBoundingSet = "";
        DevicePolicy = "closed";
        LockPersonality = true;
        MemoryDenyWriteExecute = true;
        NoNewPrivileges = true;
        PrivateDevices = true;
        PrivateTmp = true;
        PrivateUsers = true;
        ProtectClock = true;
        ProtectControlGroups = true;
        ProtectHome = true;
        ProtectHostname = true;
        ProtectKernelLogs = true;
        ProtectKernelModules = true;
        ProtectKernelTunables = true;
        ProtectProc = "invisible";
        ProtectSystem = "strict";
        RemoveIPC = true;
        RestrictAddressFamilies = [ "AF_INET" "AF_INET6" "AF_UNIX" ];
        RestrictNamespaces = true;
        RestrictRealtime = true;
        RestrictSUIDSGID = true;
        SystemCallArchitectures = "native";
        SystemCallErrorNumber = "EPERM";
        SystemCallFilter = [ "@system-service" "~@privileged @resources" ];
      };
    };
  };
}
