{
  description = "A Nix binary cache that stores each byte once";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      systems = [ "x86_64-linux" "aarch64-linux" "x86_64-darwin" "aarch64-darwin" ];
      forEachSystem = f: nixpkgs.lib.genAttrs systems (system: f nixpkgs.legacyPackages.${system});
      package = pkgs: pkgs.callPackage ./nix/package.nix { version = self.shortRev or "dirty"; };
    in
    {
      packages = forEachSystem (pkgs: {
        default = package pkgs;
        dedupd = package pkgs;
      });

      overlays.default = final: _: { dedupd = package final; };

      nixosModules.default = {
        imports = [ ./nix/module.nix ];
        nixpkgs.overlays = [ self.overlays.default ];
      };

      formatter = forEachSystem (pkgs: pkgs.nixfmt-rfc-style);
    };
}
