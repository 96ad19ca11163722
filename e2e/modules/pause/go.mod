module escadre.dev/e2e/modules/pause

go 1.26.0
